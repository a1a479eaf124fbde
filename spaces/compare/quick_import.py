"""Gradio, imported in half the time.

Whenever it is imported, Gradio 6.31 parses the source of each of its components, in order to write type stubs for
editors (component_meta.create_or_modify_pyi): 1.4 of 2.7 s on two cores, of the 3 s in which the page is to be there.
It leaves out a component whose source file is not known, so for the length of the import none is.
"""

import inspect
from unittest import mock

with mock.patch.object(inspect, "getfile", side_effect=OSError("no stubs")):
    import gradio

__all__ = ["gradio"]
