"""The stock client with one repair: it hands its DNS library values over 255 bytes as one string, which that refuses. Cut in strings of
255 bytes, slot manifests and rotation records go by UPDATE too.

Used as: python shim.py ARGUMENTS... in place of python -m dmp.cli ARGUMENTS...
"""

import runpy

import dmp.network.dns_update_writer as writer

writer._quote_txt = lambda value: " ".join(f'"{value[i:i + 255]}"' for i in range(0, len(value), 255))

runpy.run_module("dmp.cli", run_name="__main__", alter_sys=True)
