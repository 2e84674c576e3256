"""TingWu's live route: text while somebody speaks, and again once the sentence is over."""
