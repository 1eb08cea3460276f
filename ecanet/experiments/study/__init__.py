"""A study is a queue, worked by any number of processes on any number of machines."""
