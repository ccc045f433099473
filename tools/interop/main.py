"""python main.py --impl dmpd|reference [--keep] scenario|mesh|cluster|tools|tls|acme|import"""

import argparse
import importlib
import os
import shutil
import signal
import sys
import traceback

import checks
import nodes


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--impl", choices=["dmpd", "reference"], default="dmpd")
    parser.add_argument("--keep", action="store_true", help="leave the folders and logs of the nodes")
    parser.add_argument("part", choices=["scenario", "mesh", "cluster", "tools", "tls", "acme", "import"])
    options = parser.parse_args()
    part = importlib.import_module(options.part)

    def told(number, frame):
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, told)

    work = nodes.workdir()
    run = part.Run(options.impl, work)
    try:
        run.start()
        run.steps()
    except nodes.Taken as e:
        checks.check("addresses and ports are free", False, e)
    except SystemExit:
        checks.check("not stopped from outside", False)
        raise
    except Exception:
        checks.check("the run came to its end", False, traceback.format_exc())
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # ending is short, and must not be left half done
        for node in run.nodes:
            if node.process is not None:
                code = node.stop()
                if options.impl == "dmpd" and node.answered:  # the reference ends as signals end it
                    checks.check(f"node {node.name} ends by itself, and leaves no process", code == 0, f"exit {code}\n{node.tail()}")
        run.close()
        if options.keep:
            print("left for a look:", work)
        else:
            shutil.rmtree(work, ignore_errors=True)
            checks.check("nothing is left of it", not os.path.exists(work))
    sys.exit(checks.close())


main()
