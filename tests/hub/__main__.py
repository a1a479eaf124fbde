"""Start the test Hub by hand: `python -m tests.hub`."""

import argparse
import contextlib
import signal
import threading

from tests.hub.server import FakeHub


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description="Start the test Hub by hand.")
    parser.add_argument("--port", type=int, default=0, help="default: any free port")
    parser.add_argument("--token", default="hf_test_gdzoo", help="the write token of the user gdzoo")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background jobs start with Ctrl-C ignored
    with FakeHub(args.port) as hub, contextlib.suppress(KeyboardInterrupt):
        hub.add_user("gdzoo", args.token)
        print("The test Hub is running, with a user gdzoo. Settings for its clients:\n")
        for name, value in {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": args.token, "HF_HUB_DISABLE_XET": "1"}.items():
            print(f"export {name}={value}")
        print("\nCtrl-C stops it. Its content is then lost.", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
