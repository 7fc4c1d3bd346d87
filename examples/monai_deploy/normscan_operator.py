"""A detector as an operator of a MONAI Deploy application.

    pip install monai-deploy-app-sdk 'normscan[dicom]'

In the application, behind the operators that load and choose series::

    score = NormscanOperator(self, run=self.model_path / "head", output=self.output_path)
    self.add_flow(select, score, {("study_selected_series_list", "study_selected_series_list")})

Map, segments and report are written as DICOM objects of the source's study, and what was found goes
on as a list of dictionaries, one a series. A series that the detector refuses stops nothing: its
dictionary has a ``refused`` instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.deploy.core import ConditionType, Fragment, Operator, OperatorSpec

import normscan as ns
from normscan.errors import ScanError
from normscan.io.dicom import read_dicom


class NormscanOperator(Operator):
    """Scores the selected series.

    Args:
        fragment: the application that it is part of.
        run: run folder of the detector.
        output: folder for the results.
        formats: see ``Finding.save``.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        run: Path,
        output: Path,
        formats: tuple[str, ...] = ("dicom",),
        **kwargs: Any,
    ) -> None:
        self.detector = ns.load(run)
        self.output, self.formats = Path(output), formats
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("study_selected_series_list")
        spec.output("findings").condition(ConditionType.NONE)  # nobody needs to listen

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        studies = op_input.receive("study_selected_series_list")
        chosen = [one.series for study in studies for one in study.selected_series]
        findings = [self.score(series, number) for number, series in enumerate(chosen, 1)]
        op_output.emit(findings, "findings")

    def score(self, series: Any, number: int) -> dict[str, Any]:
        """Return what is told of a series; its name holds nothing of the patient."""
        instances = series.get_sop_instances()
        files = [str(one.get_native_sop_instance().filename) for one in instances]
        try:
            # From its files: the geometry of each plane counts, which a volume has lost.
            finding = self.detector.predict(read_dicom(files))
        except ScanError as error:
            return {"scan": f"series-{number}", "refused": str(error)}
        finding.save(self.output, f"series-{number}", overlay=False, formats=self.formats)
        return finding.to_dict()
