"""From the tensors of an uploaded file to canonical rank rows, with reasons and evidence.

`read.read_file` names what is in a file, `detect.choose` finds the layout it was made for,
`plan.plan` joins both into a Plan and an AcceptReport, `convert.write` streams the factors out.
Only `convert` imports torch. Knows no catalog and no upload.
"""
