"""The ECA-Net paper's tables, counted anew."""
