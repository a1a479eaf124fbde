"""Gradio, imported in half the time.

On import, Gradio 6.31 parses the source of each of its components to write type stubs for editors
(component_meta.create_or_modify_pyi): 1.4 of 2.7 s on two cores, and the page should open within 3 s. It skips
components whose source file cannot be found, so during the import inspect.getfile finds none.
"""

import inspect
from unittest import mock

with mock.patch.object(inspect, "getfile", side_effect=OSError("no stubs")):
    import gradio

__all__ = ["gradio"]
