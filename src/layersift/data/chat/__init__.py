"""Conversations: what each turn says, how a template writes it, which of its tokens are trained."""
