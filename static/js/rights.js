// A button whose action a cluster would refuse cannot be pressed, and says why. Which actions these are stands on the
// badges of the clusters, which follow what the clusters say; it depends on what is selected, and not on who looks.
const badges = document.querySelector('.badges');
if (badges && document.getElementById('batch')) {
  new MutationObserver(draw).observe(badges, {subtree: true, childList: true, attributes: true, attributeFilter: ['data-lacks', 'data-why']});
  document.addEventListener('knm:selected', draw);
  draw();
}

// The form stands in what is fetched again when its node changes, so it is looked for each time.
function draw() {
  const form = document.getElementById('batch');
  const nodes = form?.querySelector('textarea[name=nodes], input[type=hidden][name=nodes]');
  if (!nodes) return;
  const chosen = new Set(nodes.value.split('\n').map(ref => ref.slice(0, ref.lastIndexOf('/'))));
  const lacking = [...badges.querySelectorAll('[data-lacks]')].filter(badge => chosen.has(badge.dataset.cluster));
  for (const button of form.querySelectorAll('button[name=action]')) {
    const why = lacking.find(badge => badge.dataset.lacks.split(' ').includes(button.value))?.dataset.why ?? '';
    button.disabled = why !== '';
    button.title = why;
    if (why) button.setAttribute('aria-description', why);
    else button.removeAttribute('aria-description');
  }
}
