"""Figures about scenes and archives: band statistics, drift, labels, retrieval scores."""
