"""What both demo services stand on and a reader of them can skip: HTTP manners, logs, page, faults."""
