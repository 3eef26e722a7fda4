"""The commands of `loramux`, one file for each family. They print; the client does the work."""
