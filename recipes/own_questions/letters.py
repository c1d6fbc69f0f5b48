"""Grades how much of a word is spelled right."""


def share(example, completion):
    """Return the share of letters that are right, counted from the start."""
    wanted = example["answers"][0].partition(":")[2].split(",")
    written = completion.strip().partition(":")[2].split(",")
    right = 0
    while right < min(len(wanted), len(written)) and wanted[right] == written[right]:
        right += 1
    return right / max(len(wanted), len(written))
