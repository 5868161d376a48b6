"""The daemon xencolod and the command xencolo, on trio."""
