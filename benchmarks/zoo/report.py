def write_report(known):
    pass
