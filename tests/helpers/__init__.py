"""What several test files share: reference loops, random problems, tiny models, a study to kill."""
