"""The program `query-rewards`: the verbs of the batch side and those of the serving side, which never import each other."""

import training.cli  # noqa: F401 -- its verbs add themselves
from serving import verbs
from training.console import app, main, verb

app.command()(verbs.feedback)
verb(extra="http")(verbs.serve)

__all__ = ["main"]

if __name__ == "__main__":
    main()
