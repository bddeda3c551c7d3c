"""Conversations: chat templates, sliding in a full context, sessions and prompts kept on disk."""
