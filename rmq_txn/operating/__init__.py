"""What a person on call asks: facts read from database and brokers, and sentences about them."""
