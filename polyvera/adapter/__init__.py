"""What an adapter is: the equation, the table, the basis, the layer, the bank. No files, no clocks, no HTTP."""
