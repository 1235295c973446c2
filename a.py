import tempfile, torch
from pathlib import Path
from exml_fast.cli.study import *
from exml_fast.cli import study as S
from exml_fast.cli.progress import Reporter
import dataclasses
# 1 class sizes
S.PUBLISHED["digits"]=S.PUBLISHED["mnist"]; 
st=Study(Settings(data="digits",classes_per_step=[6,1]),Path("x1"),Reporter())
print("6,1:",[len(e) for e in st.experiences], st._as_published())
# 2 compete
for strategies,inv in ((["model-inversion","adaptive-inversion"],{"compete":2.0,"steps":3}),):
    s=Settings(data="digits",scenario="new-classes",classes_per_step=[5],strategies=strategies,epochs=1,inversion=inv,distillation={"iterations":2,"buffer_size":20})
    s.check(); print("check ok")
    try:
        Study(s,Path(tempfile.mkdtemp()),Reporter()).run(); print("ran")
    except Exception as e: print(repr(e))
s=Settings(data="digits",strategies=["adaptive-inversion"],inversion={"compete":0})
print("compete=0 ->", AdaptiveInversion(s.recipe("adaptive-inversion")).recipe.compete if True else 0)
