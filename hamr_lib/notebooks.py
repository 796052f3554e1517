"""Execute one notebook on the interpreter that runs the study."""

import sys
from pathlib import Path

import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellExecutionError

from hamr_lib.errors import HamrError
from hamr_lib.variants import check_names

# Of the kernel: no warning that it talks to this process without encryption; figures as JPEG, which
# is several times as small as PNG.
KERNEL = [
    "--log-level=ERROR",
    "--InlineBackend.figure_formats={'jpeg'}",
    "--InlineBackend.print_figure_kwargs={'bbox_inches': 'tight', 'pil_kwargs': {'quality': 75}}",
]


class ThisInterpreter(AsyncKernelManager):
    """Start kernels on this interpreter, whatever kernels are installed under which name."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


def run_notebook(source: Path, out: Path, parameters: dict) -> None:
    """Execute the notebook `source` into `out`, which is written cell by cell.

    Raises:
        HamrError: a parameter that the notebook does not know, the error of a cell, or the end of
            the kernel.
    """
    if not source.is_file():
        raise HamrError(f"{source} does not exist")
    known = papermill.inspect_notebook(str(source))
    check_names(parameters, known, f"parameter of {source.name}")
    try:
        papermill.execute_notebook(
            str(source),
            str(out),
            parameters=parameters,
            kernel_name="python3",
            kernel_manager_class=ThisInterpreter,
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            extra_arguments=KERNEL,
        )
    except papermill.PapermillExecutionError as error:
        raise HamrError(
            f"{source} failed in cell {error.exec_count}: {error.ename}: {error.evalue}"
        ) from error
    except (RuntimeError, TimeoutError, CellExecutionError) as error:
        raise HamrError(f"{source}: the kernel ended: {error}") from error
