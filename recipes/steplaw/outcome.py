"""x"""


def finish(run):
    pass


def write_report(folder):
    pass
