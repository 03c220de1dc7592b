"""Demo: a service that awards points for transfers, once each, however often it hears of them."""
