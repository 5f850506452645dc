// The selection is a set of nodes, not of rows: it outlives changes, resets, sorting and paging of the same view. The
// text area of the form mirrors it.
import {t, count, toast} from "./text.js";
import {order} from "./live.js";

const form = document.querySelector('form#batch:not([data-single])');
const rows = document.getElementById('rows');
if (form && rows) start();

function start() {
  const area = form.elements.nodes instanceof RadioNodeList
    ? [...form.elements.nodes].find(el => el.tagName === 'TEXTAREA') : form.querySelector('textarea[name=nodes]');
  const all = document.getElementById('all');
  const matching = document.getElementById('allmatching');
  const foreign = document.getElementById('foreign');
  const choice = foreign.querySelector('select');
  const kubectl = document.getElementById('kubectl');
  const store = 'knm.selection';
  let chosen = restore(); // ref → what is known of its cordon: none, ours, foreign, or '' for not seen
  let anchor = null, painting = null, action = '';

  function restore() {
    try {
      const saved = JSON.parse(sessionStorage.getItem(store));
      if (saved?.view === form.dataset.view) return new Map(saved.chosen);
    } catch { /* nothing that can be read: begin empty */ }
    return new Map();
  }
  function save() {
    try {
      sessionStorage.setItem(store, JSON.stringify({view: form.dataset.view, chosen: [...chosen]}));
    } catch { /* storage is full or forbidden: the selection then lasts as long as the page */ }
  }

  const list = () => [...rows.querySelectorAll('tr[data-ref]')];
  const box = row => row.querySelector('.c-sel input');
  // The nodes of each group on this page, by its header. Which header a node belongs to is what the server's order says:
  // a row that is still on its way to another group must not be taken for one of where it stands.
  function groups() {
    const found = new Map();
    let members = null;
    for (const id of order()) {
      const row = document.getElementById(id);
      if (row?.matches('tr[data-group]')) found.set(row, members = []);
      else if (row?.dataset.ref) members?.push(row);
    }
    return found;
  }
  const can = {
    cordon: known => known === 'none' || known === '',
    uncordon: known => known !== 'none',
  };
  const refs = verb => [...chosen].filter(([, known]) => can[verb](known)).map(([ref]) => ref);
  const split = ref => { const i = ref.lastIndexOf('/'); return [ref.slice(0, i), ref.slice(i + 1)]; };

  function put(row, on) {
    if (on) chosen.set(row.dataset.ref, row.dataset.cordon);
    else chosen.delete(row.dataset.ref);
  }

  let drawn = false;
  function draw() {
    if (drawn) return;
    drawn = true;
    queueMicrotask(() => { drawn = false; paint(); });
  }

  function paint() {
    const shown = list();
    let ticked = 0;
    for (const row of shown) {
      const on = chosen.has(row.dataset.ref);
      if (on) {
        ticked++;
        chosen.set(row.dataset.ref, row.dataset.cordon);
      }
      const input = box(row);
      if (input.checked !== on) input.checked = on;
      if (row.hasAttribute('data-ui-sel') !== on) row.toggleAttribute('data-ui-sel', on);
    }
    all.checked = ticked > 0 && ticked === shown.length;
    all.indeterminate = ticked > 0 && ticked < shown.length;
    for (const [head, members] of groups()) {
      const k = members.filter(row => chosen.has(row.dataset.ref)).length;
      box(head).checked = k > 0 && k === members.length;
      box(head).indeterminate = k > 0 && k < members.length;
    }

    const n = chosen.size;
    form.toggleAttribute('data-ui-open', n > 0);
    area.value = [...chosen.keys()].join('\n');
    form.querySelector('[data-count]').textContent = n ? count('selected', n) : '';
    const by = new Map();
    for (const ref of chosen.keys()) {
      const [cluster] = split(ref);
      by.set(cluster, (by.get(cluster) ?? 0) + 1);
    }
    form.querySelector('[data-clusters]').textContent = [...by].map(([c, k]) => `${c} ${k}`).join(' · ');
    for (const verb of ['cordon', 'uncordon']) {
      const button = form.querySelector(`button[value=${verb}]`);
      const k = refs(verb).length;
      button.hidden = k === 0;
      button.textContent = count(verb, k);
    }
    const strangers = [...chosen.values()].some(known => known === 'foreign' || known === '');
    foreign.hidden = choice.disabled = !strangers;
    const total = Number(document.getElementById('pager-info')?.dataset.total ?? 0);
    matching.hidden = !(ticked > 0 && ticked === shown.length && total > n);
    matching.textContent = t('allmatching', {n: total.toLocaleString(document.documentElement.lang)});
    kubectl.dataset.copy = commands();
    save();
    document.dispatchEvent(new CustomEvent('knm:selected'));
  }

  // The same by hand, one line for each cluster and verb.
  function commands() {
    const quote = s => /^[\w.\-/:@%+=]+$/.test(s) ? s : `'${s.replaceAll("'", `'\\''`)}'`;
    const lines = [];
    for (const verb of ['cordon', 'uncordon']) {
      const by = new Map();
      for (const [ref, known] of chosen) {
        // Of what has not been seen nobody knows which of the two it needs; cordon is the one that does no harm twice.
        if (known === '' ? verb !== 'cordon' : !can[verb](known)) continue;
        const [cluster, node] = split(ref);
        by.set(cluster, [...(by.get(cluster) ?? []), quote(node)]);
      }
      for (const [cluster, nodes] of by) lines.push(`kubectl --context ${quote(cluster)} ${verb} ${nodes.join(' ')}`);
    }
    return lines.join('\n');
  }

  function range(to, on) {
    const shown = list();
    const a = shown.findIndex(row => row.dataset.ref === anchor), b = shown.indexOf(to);
    if (a < 0 || b < 0) return put(to, on);
    for (const row of shown.slice(Math.min(a, b), Math.max(a, b) + 1)) put(row, on);
  }

  rows.addEventListener('click', e => {
    const cell = e.target.closest('.c-sel');
    if (!cell) return;
    const row = cell.closest('tr'), input = box(row);
    const on = e.target === input ? input.checked : !input.checked;
    if (!row.dataset.ref) for (const member of groups().get(row) ?? []) put(member, on);
    else if (e.shiftKey && anchor) range(row, on);
    else put(row, on);
    anchor = row.dataset.ref ?? anchor;
    draw();
  });

  // Dragging along the boxes ticks them like the first one.
  rows.addEventListener('pointerdown', e => {
    const cell = e.target.closest('.c-sel');
    if (!cell?.closest('tr[data-ref]') || e.pointerType !== 'mouse' || e.button !== 0 || e.shiftKey) return;
    painting = {on: !box(cell.closest('tr')).checked, first: cell.closest('tr'), moved: false};
    document.documentElement.setAttribute('data-ui-drag', '');
  });
  rows.addEventListener('pointerover', e => {
    const row = painting && e.target.closest('tr[data-ref]');
    if (!row || (row === painting.first && !painting.moved)) return;
    painting.moved = true;
    put(painting.first, painting.on);
    put(row, painting.on);
    draw();
  });
  document.addEventListener('pointerup', () => {
    painting = null;
    document.documentElement.removeAttribute('data-ui-drag');
  });

  all.addEventListener('click', () => {
    for (const row of list()) put(row, all.checked);
    draw();
  });

  matching.addEventListener('click', async () => {
    matching.disabled = true;
    try {
      const answer = await fetch(form.dataset.refs, {headers: {Accept: 'application/json'}});
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const {refs: found, total} = await answer.json();
      for (const ref of found) if (!chosen.has(ref)) chosen.set(ref, '');
      if (total > found.length) toast(t('partmatching', {n: found.length, total}));
    } catch (err) {
      console.error('all matching', err);
      toast(t('allfailed'));
    }
    matching.disabled = false;
    draw();
  });

  const clear = () => { chosen = new Map(); anchor = null; draw(); };
  document.getElementById('clear').addEventListener('click', clear);
  document.addEventListener('knm:clear', clear);
  document.addEventListener('knm:sent', clear);
  document.addEventListener('knm:rows', draw);
  window.addEventListener('pageshow', e => { if (e.persisted) { chosen = restore(); draw(); } });

  // The form sends what the button says: the nodes that its verb applies to, and the choice for foreign cordons with
  // uncordon alone.
  document.addEventListener('submit', e => { if (e.target === form) action = e.submitter?.value ?? ''; }, true);
  form.addEventListener('formdata', e => {
    e.formData.delete('nodes');
    e.formData.delete('foreign');
    e.formData.set('nodes', (can[action] ? refs(action) : [...chosen.keys()]).join('\n'));
    if (action === 'uncordon' && !choice.disabled) e.formData.set('foreign', choice.value);
  });

  area.disabled = false;
  paint();
}
