# ruff: noqa: E501  the page has its own lines
"""Attention over strokes as one HTML file without network: hover over a stroke to see what it
reads.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp_core.files.artifacts import replacing
from interp_core.plotting import ABLATED, GRID, INDUCTION, INK, PREVIOUS_TOKEN

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>What a stroke reads</title>
<style>
body{font:16px sans-serif;color:INK;margin:24px;max-width:1100px}
svg{width:100%;height:340px;touch-action:none}
.letters span{display:inline-block;padding:6px 10px;margin:2px;border:1px solid GRID;min-width:10px;text-align:center}
select,button{font:inherit;margin-right:12px}
.legend em{font-style:normal}
.legend span{display:inline-block;width:22px;height:10px;border-radius:3px}
</style>
<h2>What a stroke reads</h2>
<p>The same strokes twice: a word for the model that writes, random strokes for the control. Point at a stroke (or use the arrow keys).
Numbers are shares of attention; what is left went to the marks between words.</p>
<p class="legend"><span style="background:ABLATED"></span> the stroke that is asked &nbsp; <span style="background:INDUCTION"></span> strokes that the self-attention head
<b id="selfname"></b> attends to, wider for more &nbsp; <em id="reads"><span style="background:PREVIOUS"></span> characters that the cross-attention head <b id="crossname"></b> reads &nbsp; </em><span style="background:GRID"></span> other ink</p>
<p><label>model <select id="model"></select></label><label>layer <select id="layer"></select></label><label>head <select id="head"></select></label>
<label>asked at <select id="slot"><option value="1">the whole stroke</option><option value="0">its direction</option></select></label>
<span id="told"></span></p>
<svg id="ink"></svg><p class="letters" id="letters"></p>
<script>
const data=DATA;
const svg=document.getElementById("ink"),ns=svg.namespaceURI;
const model=document.getElementById("model"),layer=document.getElementById("layer"),head=document.getElementById("head"),slot=document.getElementById("slot");
Object.keys(data).forEach(name=>model.add(new Option(name,name)));
let shown,points,lines,dot,letters,strokeOf,at;
function start(){
 shown=data[model.value];points=shown.strokes;at=Math.floor(points.length*.75);
 const xs=points.map(p=>p[0]),ys=points.map(p=>p[1]);
 svg.replaceChildren();
 svg.setAttribute("viewBox",[Math.min(...xs)-.1,Math.min(...ys)-.1,Math.max(...xs)-Math.min(...xs)+.2,Math.max(...ys)-Math.min(...ys)+.2].join(" "));
 lines=points.map((p,i)=>{const line=document.createElementNS(ns,"line"),from=i?points[i-1]:p;
  line.setAttribute("x1",from[0]);line.setAttribute("y1",from[1]);line.setAttribute("x2",p[0]);line.setAttribute("y2",p[1]);
  line.setAttribute("stroke-linecap","round");svg.append(line);return line});
 dot=document.createElementNS(ns,"circle");dot.setAttribute("r",.022);dot.setAttribute("fill","ABLATED");svg.append(dot);
 document.getElementById("letters").replaceChildren();
 letters=shown.letters.map(c=>{const s=document.createElement("span");s.textContent=c===" "?"\u2423":c;document.getElementById("letters").append(s);return s});
 document.getElementById("reads").hidden=!letters.length;
 layer.replaceChildren();head.replaceChildren();
 shown.self.forEach((_,i)=>layer.add(new Option(i,i)));shown.self[0].forEach((_,i)=>head.add(new Option(i,i)));
 [layer.value,head.value]=shown.best;
 strokeOf=new Map();shown.position.forEach((t,i)=>{strokeOf.set(t,i);strokeOf.set(t-1,i)});
 show();
}
function show(){
 const mine=points.map(()=>0),query=2*at+Number(slot.value);
 document.getElementById("selfname").textContent="L"+layer.value+"H"+head.value;
 document.getElementById("crossname").textContent="L"+layer.value+"X"+head.value;
 for(const [t,w] of shown.self[layer.value][head.value][query])if(strokeOf.has(t))mine[strokeOf.get(t)]+=w/100;
 lines.forEach((line,i)=>{const w=mine[i],down=i&&points[i][2];
  line.setAttribute("stroke",w>=.01?"INDUCTION":down?"GRID":"none");line.setAttribute("stroke-opacity",w>=.01?Math.min(1,.25+w):1);
  line.setAttribute("stroke-width",.012+.05*w)});
 dot.setAttribute("cx",points[at][0]);dot.setAttribute("cy",points[at][1]);
 const read=letters.map(()=>0);for(const [c,w] of shown.cross[layer.value][head.value][query])if(c<read.length)read[c]=w/100;
 letters.forEach((s,i)=>{s.style.background="PREVIOUS"+Math.round(255*read[i]).toString(16).padStart(2,"0");s.title=read[i].toFixed(2)});
 const best=mine.indexOf(Math.max(...mine));
 document.getElementById("told").textContent="stroke "+at+" looks most at stroke "+best+" ("+mine[best].toFixed(2)+")";
}
svg.addEventListener("pointermove",e=>{const p=new DOMPoint(e.clientX,e.clientY).matrixTransform(svg.getScreenCTM().inverse());
 let near=0,d=1e9;points.forEach((q,i)=>{const r=(q[0]-p.x)**2+(q[1]-p.y)**2;if(r<d){d=r;near=i}});at=near;show()});
addEventListener("keydown",e=>{if(e.target.tagName==="SELECT")return;if(e.key==="ArrowRight")at=Math.min(points.length-1,at+1);else if(e.key==="ArrowLeft")at=Math.max(0,at-1);else return;show()});
for(const s of [layer,head,slot])s.addEventListener("change",show);model.addEventListener("change",start);start();
</script></html>
"""


def write_page(models: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the page of every model by name; the drawings' numbers are inside it."""
    page = _PAGE
    for name, colour in (
        ("INK", INK),
        ("GRID", GRID),
        ("ABLATED", ABLATED),
        ("INDUCTION", INDUCTION),
        ("PREVIOUS", PREVIOUS_TOKEN),
    ):
        page = page.replace(name, colour)
    # "</" could end the script: JSON has another spelling of it.
    numbers = json.dumps(models, separators=(",", ":")).replace("</", "<\\/")
    with replacing(path) as part:
        part.write_text(page.replace("DATA", numbers), encoding="utf-8")
