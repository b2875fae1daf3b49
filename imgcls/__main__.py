"""`python -m imgcls` is the same as the console script `imgcls`."""

from imgcls.cli import main

if __name__ == "__main__":
    main()
