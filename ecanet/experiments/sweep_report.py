"""stub"""


def write_report(summary, out):
    return out / "index.html"
