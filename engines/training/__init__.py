"""One trainer, and what it trains."""
