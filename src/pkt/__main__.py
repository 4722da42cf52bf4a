"""`python -m pkt` is the command `pkt`."""

from pkt.cli import main

if __name__ == "__main__":
    main()
