"""What other servers say: transcripts and refusals, in all the shapes in which servers like OpenAI's have them."""
