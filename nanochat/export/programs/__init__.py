"""Programs that answer questions with an exported model. They know only the folder, and run in a process of their own.

Each is called with a file of questions, as `trial` writes it, and the name of the file for the answers.
"""
