"""Find the channel attentions of a graph, and what stands around each."""
