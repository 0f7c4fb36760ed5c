"""Everything that counts in one run; the page and the figures of committed results."""
