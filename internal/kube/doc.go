// Package kube is the only room that speaks the Kubernetes API's language: kubeconfigs become clients, corev1 objects
// become the nouns of fleet, API errors become the kinds of fleet. It keeps no state and starts nothing.
package kube
