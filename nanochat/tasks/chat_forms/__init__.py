"""The forms in which people store chats, and which of their keys are honoured, refused or ignored."""
