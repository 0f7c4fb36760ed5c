"""Parts that know nothing of attention: tables of text, near names, clocks, private names of torch."""
