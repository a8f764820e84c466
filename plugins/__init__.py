"""First-party plugins: one method, one file. They use only what a third party could use."""
