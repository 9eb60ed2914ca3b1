"""The books around the path: who may send, who follows whom, who owes what, and the archive of every signal."""
