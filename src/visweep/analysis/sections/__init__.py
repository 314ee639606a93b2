"""The sections of a report: each a function from the overview of a study to a `Section`."""
