"""The README's figures are those of the files in results/."""

import subprocess
import sys
from pathlib import Path


def test_the_table_in_the_readme_is_the_one_its_script_makes() -> None:
    script = Path(__file__).parent.parent / "docs" / "results_table.py"
    result = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
