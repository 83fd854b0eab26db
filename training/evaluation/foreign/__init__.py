"""Reading logs that another service wrote: which rows count, which do not, and why."""
