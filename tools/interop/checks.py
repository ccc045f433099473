"""What a check prints, and how many there were."""

import sys

passed = 0
failed = 0
later = 0


def check(name, holds, detail=""):
    """One line for one check. detail is printed when it does not hold."""
    global passed, failed
    if holds:
        passed += 1
        print(f"ok    {name}", flush=True)
    else:
        failed += 1
        print(f"FAIL  {name}", flush=True)
        for line in str(detail).strip().splitlines()[-12:]:
            print(f"      | {line}", flush=True)
    return bool(holds)


def equal(name, got, want):
    return check(name, got == want, f"got {got!r}, want {want!r}")


def not_yet(name, what):
    """A step that needs something the node does not have yet. It counts neither way, and is never taken for passed."""
    global later
    later += 1
    print(f"      not yet: {what} ({name})", flush=True)


def section(title):
    print(f"\n== {title}", flush=True)


def close():
    """The last line, and the exit code."""
    if later:
        print(f"\n{later} steps not yet possible", flush=True)
    if passed + failed == 0:
        check("some check ran", False)
    print(f"{passed} passed, {failed} failed", flush=True)
    sys.stdout.flush()
    return 1 if failed else 0
