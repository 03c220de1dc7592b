"""Demo: a service that moves money between accounts and tells others with transactional messages."""
