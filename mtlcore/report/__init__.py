"""One offline HTML page of a run, made from the files in its folder."""

from mtlcore.report.page import render, write_report

__all__ = ["render", "write_report"]
