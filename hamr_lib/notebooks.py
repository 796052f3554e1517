"""Execute one notebook on the interpreter that runs the study."""

import sys
from pathlib import Path

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellExecutionError

from hamr_lib.errors import HamrError
from hamr_lib.variants import check_names


class ThisInterpreter(AsyncKernelManager):
    """Start kernels on this interpreter, whatever kernels are installed under which name."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


def run_notebook(source: Path, out: Path, parameters: dict) -> None:
    """Execute the notebook `source` into `out`, which is written cell by cell.

    Raises:
        HamrError: a parameter that the notebook does not know; the error of a cell; or the end of
            the kernel, with the cell that it ended in.
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
            # Its warning that notebook and kernel talk without encryption, on one machine.
            extra_arguments=["--log-level=ERROR"],
        )
    except papermill.PapermillExecutionError as error:
        raise HamrError(
            f"{source} failed in cell {error.exec_count}: {error.ename}: {error.evalue}"
        ) from error
    except (RuntimeError, TimeoutError, CellExecutionError) as error:
        cells = nbformat.read(out, as_version=4).cells if out.is_file() else []
        started = [cell.metadata.get("papermill", {}).get("start_time") for cell in cells]
        last = max((number for number, time in enumerate(started, start=1) if time), default=0)
        raise HamrError(
            f"{source}: the kernel ended in cell {last} of {len(cells)}: {error}"
        ) from error
