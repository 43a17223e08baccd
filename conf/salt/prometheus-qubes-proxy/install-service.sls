# In a template of qubes to watch: the qrexec service.
#   qubesctl --skip-dom0 --targets=TEMPLATE state.apply prometheus-qubes-proxy.install-service
{% from 'prometheus-qubes-proxy/packages.jinja' import installed with context %}
{{ installed(['prometheus-qubes-proxy-service']) }}
