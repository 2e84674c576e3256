"""TingWu's live WebSocket: text while somebody speaks, and again once the sentence is over."""
