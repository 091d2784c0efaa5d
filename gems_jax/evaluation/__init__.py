"""How well a tuned model searches and recommends, and how much general language it has kept."""
