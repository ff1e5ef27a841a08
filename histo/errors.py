"""The one exception for mistakes a user can mend; every entry point turns it into a sentence and exit code 2."""


class InputError(ValueError):
    """What is wrong (with the value shown), what was expected, and what to do, in one sentence.

    Raised for anything a user can cause: a path, a setting, a damaged file. Programming errors keep their own types
    and their traceback.
    """
